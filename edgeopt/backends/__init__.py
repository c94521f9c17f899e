"""The room of backends: one file per runtime, one line per file."""

TABLE = (
    "onnxruntime",
    "openvino",
    "tensorrt",
    "null",
)
