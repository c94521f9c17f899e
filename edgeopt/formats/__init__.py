"""The room of model formats: how each one is loaded, saved, described and run for parity checks."""

TABLE = (
    "torch",
    "onnx",
    "openvino",
)
