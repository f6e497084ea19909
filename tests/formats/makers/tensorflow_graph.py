from __future__ import annotations

from pathlib import Path

from formats.samples import Values, arrays

SUFFIX = ".pb"


def make(path: Path) -> Values:
    """Constants, two of them under a convolution."""
    import tensorflow as tf

    values = {name.replace(".", "/"): value for name, value in arrays().items()}
    values["stem/weight"] = values["stem/weight"].transpose(2, 3, 1, 0).copy()
    graph = tf.Graph()
    with graph.as_default():
        stored = {name: tf.constant(value, name=name) for name, value in values.items()}
        x = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 3), "x")
        y = tf.nn.conv2d(x, stored["stem/weight"], 1, "SAME", name="stem/Conv2D")
        tf.nn.bias_add(y, stored["stem/bias"], name="y")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return values
