"""A layer that TensorRT does not have, in Python: soft thresholding, as deep residual shrinkage networks use it.

An ONNX node of type `SoftThreshold` with the attribute `threshold` becomes this plugin. model.yaml names the file:

    runtime: {backend: tensorrt, plugins: [soft_threshold.py]}

visionpool imports it before it parses the model, and calls `register(trt)`. The kernel lies beside it, in soft_threshold.cu.
The interfaces are TensorRT's IPluginV3 (Developer Guide, "Adding Custom Layers using the Python API").
"""

from pathlib import Path

import numpy as np
from visionpool_server.cuda.compiler import compile_kernels
from visionpool_server.cuda.driver import open_driver

NAME, VERSION = "SoftThreshold", "1"
BLOCK = 256  # threads


class Kernel:
    """soft_threshold.cu on the device that is current, compiled when the first inference asks for it."""

    def __init__(self):
        self.driver = open_driver()
        source = Path(__file__).with_name("soft_threshold.cu").read_text()
        self.module = self.driver.load_module(compile_kernels(source, "compute_75"))
        self.function = self.driver.function(self.module, "soft_threshold")

    def launch(self, x, y, threshold, count, stream):
        """`x`, `y`: addresses on the device of `count` floats; `stream`: the one that TensorRT works on."""
        arguments = [np.uint64(x), np.uint64(y), np.float32(threshold), np.int64(count)]
        self.driver.launch(self.function, (-(-count // BLOCK), 1, 1), (BLOCK, 1, 1), arguments, stream)


def register(trt):
    """Adds the layer to TensorRT's registry; `trt`: the module tensorrt or tensorrt_rtx, whichever visionpool runs on."""

    class SoftThreshold(
        trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime
    ):  # one object is all three
        def __init__(self, threshold):
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, ""
            self.num_outputs = 1
            self.threshold = threshold
            self.kernel = None  # made by the first inference: building needs none

        def get_capability_interface(self, type):  # noqa: A002  TensorRT's name
            return self

        def clone(self):
            copy = SoftThreshold(self.threshold)
            copy.kernel = self.kernel
            return copy

        def get_output_data_types(self, input_types):
            return [input_types[0]]

        def get_output_shapes(self, inputs, shape_inputs, expr_builder):
            return [trt.DimsExprs(inputs[0])]

        def supports_format_combination(self, pos, in_out, num_inputs):
            tensor = in_out[pos].desc
            return tensor.format == trt.TensorFormat.LINEAR and tensor.type == trt.DataType.FLOAT

        def configure_plugin(self, inputs, outputs):
            """Nothing depends on the shapes."""

        def on_shape_change(self, inputs, outputs):
            """Nothing depends on the shapes."""

        def attach_to_context(self, resource_context):
            return self.clone()

        def get_fields_to_serialize(self):
            value = np.array([self.threshold], np.float32)
            return trt.PluginFieldCollection([trt.PluginField("threshold", value, trt.PluginFieldType.FLOAT32)])

        def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
            self.kernel = self.kernel or Kernel()
            self.kernel.launch(inputs[0], outputs[0], self.threshold, int(np.prod(input_desc[0].dims)), stream)

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self):
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, ""
            field = trt.PluginField("threshold", np.array([], np.float32), trt.PluginFieldType.FLOAT32)
            self.field_names = trt.PluginFieldCollection([field])

        def create_plugin(self, name, field_collection, phase):
            fields = {field.name: field.data for field in field_collection}
            return SoftThreshold(float(fields["threshold"][0]))

    creator = Creator()
    trt.get_plugin_registry().register_creator(creator, "")
    return creator  # visionpool keeps it: the registry does not
