"""One folder per operation, one public function in each; knows no layer and no request."""
