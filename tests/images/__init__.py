"""Runs the images that `make images` built as the pods of the overlay dev, under podman in namespaces of its own: `make images-check`; knows a kubelet's part."""
