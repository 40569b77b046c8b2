"""One model over several processes of a machine: which part of each weight is whose, and what they say to each other; knows no request."""
