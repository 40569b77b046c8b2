"""What the two processes of a replica say to each other: requests, step outputs and their encoding; knows neither of them."""
