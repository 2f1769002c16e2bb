"""For programs: the service behind every door, the JSON API, its client, the network on Modal, the ONNX export."""
