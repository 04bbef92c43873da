"""Runs a SavedModel through TensorFlow's C API: no Python TensorFlow, no Keras.

    python c_api.py SAVED_MODEL SIGNATURE INPUTS.npz OUTPUTS.npz \\
        [INPUTS OUTPUTS ...]

The arrays in INPUTS are named by the inputs of the signature, those in OUTPUTS
by its outputs. Prints one JSON object: `signature`, and `modules`, the
top-level modules that Python had loaded at the end.
"""

import ctypes
import importlib.util
import json
import math
import pathlib
import sys

import numpy as np

STRING = 7  # TF_STRING
NUMPY_TYPES = {  # TF_DataType to NumPy
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    9: np.int64,
    10: np.bool_,
    19: np.float16,
}
TF_TYPES = {np.dtype(dtype): code for code, dtype in NUMPY_TYPES.items()}


class Buffer(ctypes.Structure):  # TF_Buffer
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("data_deallocator", ctypes.c_void_p),
    ]


class Output(ctypes.Structure):  # TF_Output
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class String(ctypes.Structure):  # TF_TString, a union of 24 bytes
    _fields_ = [("raw", ctypes.c_uint64 * 3)]


# --- Signature: a hand decoder for the little of protobuf that it needs


def read_varint(data, position):
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def read_fields(data):
    """Yields (field number, int or memoryview) of one protobuf message."""
    data = memoryview(data)
    position = 0
    while position < len(data):
        key, position = read_varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = read_varint(data, position)
        else:
            if wire_type == 2:
                size, position = read_varint(data, position)
            else:
                size = {1: 8, 5: 4}[wire_type]
            value = data[position : position + size]
            position += size
        yield number, value


def read_map(data, number):
    """The entries of the map<string, message> that is field `number`."""
    entries = (
        dict(read_fields(v)) for n, v in read_fields(data) if n == number
    )
    return {bytes(entry[1]).decode(): entry[2] for entry in entries}


def read_dim(data):
    size = dict(read_fields(data)).get(1, 0)
    return size - 2**64 if size >= 2**63 else size  # -1 is a free size


def read_tensor_info(data):
    info = dict(read_fields(data))  # 1 name, 2 dtype, 3 shape
    shape = [read_dim(v) for n, v in read_fields(info.get(3, b"")) if n == 2]
    return {"name": bytes(info[1]).decode(), "type": info[2], "shape": shape}


def read_signature(meta_graph, name):
    signature = read_map(meta_graph, 5)[name]  # MetaGraphDef.signature_def
    return {
        "inputs": read_tensor_infos(signature, 1),
        "outputs": read_tensor_infos(signature, 2),
    }


def read_tensor_infos(signature, number):
    infos = read_map(signature, number)
    return {name: read_tensor_info(info) for name, info in infos.items()}


# --- Session


def load_library():
    # Finding a top-level package does not import it.
    package = importlib.util.find_spec("tensorflow")
    if package is None:
        raise ImportError("The TensorFlow wheel holds the C API: install it.")
    folder = pathlib.Path(package.submodule_search_locations[0])
    framework = folder / "libtensorflow_framework.so.2"
    ctypes.CDLL(str(framework), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"))
    pointers = """TF_NewStatus TF_NewGraph TF_NewSessionOptions TF_NewBuffer
        TF_LoadSessionFromSavedModel TF_GraphOperationByName TF_AllocateTensor
        TF_TensorData TF_StringGetDataPointer"""
    for function in pointers.split():
        getattr(library, function).restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    library.TF_Dim.restype = ctypes.c_int64
    library.TF_TensorByteSize.restype = ctypes.c_size_t
    library.TF_StringGetSize.restype = ctypes.c_size_t
    return library


class SavedModel:
    """A session on the `serve` graph of a SavedModel folder.

    Frees its tensors, and leaves the session to the end of the process.
    """

    def __init__(self, folder, signature):
        self.library = load_library()
        self.status = ctypes.c_void_p(self.library.TF_NewStatus())
        self.graph = ctypes.c_void_p(self.library.TF_NewGraph())
        options = ctypes.c_void_p(self.library.TF_NewSessionOptions())
        meta_graph = ctypes.c_void_p(self.library.TF_NewBuffer())
        session = self.library.TF_LoadSessionFromSavedModel(
            options,
            None,
            str(folder).encode(),
            (ctypes.c_char_p * 1)(b"serve"),
            1,
            self.graph,
            meta_graph,
            self.status,
        )
        self.check()
        self.session = ctypes.c_void_p(session)
        buffer = ctypes.cast(meta_graph, ctypes.POINTER(Buffer)).contents
        self.signature = read_signature(
            ctypes.string_at(buffer.data, buffer.length), signature
        )

    def check(self):
        if self.library.TF_GetCode(self.status):
            message = self.library.TF_Message(self.status).decode()
            raise RuntimeError(message)

    def run(self, feeds):
        """Arrays by input name to arrays by output name."""
        inputs, outputs = self.signature["inputs"], self.signature["outputs"]
        if set(feeds) != set(inputs):
            raise ValueError(
                "The arrays must be named as the inputs of the signature. "
                f"Received: {sorted(feeds)}, expected: {sorted(inputs)}."
            )
        fed = [self.tensor(feeds[n], inputs[n]["type"]) for n in inputs]
        fetched = (ctypes.c_void_p * len(outputs))()
        self.library.TF_SessionRun(
            self.session,
            None,
            self.ends(inputs),
            (ctypes.c_void_p * len(fed))(*fed),
            len(fed),
            self.ends(outputs),
            fetched,
            len(outputs),
            None,
            0,
            None,
            self.status,
        )
        self.check()
        arrays = [self.array(ctypes.c_void_p(tensor)) for tensor in fetched]
        for tensor in [*fed, *fetched]:
            self.library.TF_DeleteTensor(ctypes.c_void_p(tensor))
        return dict(zip(outputs, arrays, strict=True))

    def ends(self, infos):
        """Where tensors enter or leave the graph: "operation:index" each."""
        return (Output * len(infos))(
            *(self.end(info["name"]) for info in infos.values())
        )

    def end(self, name):
        operation, index = name.rsplit(":", 1)
        found = self.library.TF_GraphOperationByName(
            self.graph, operation.encode()
        )
        if not found:
            raise RuntimeError(f"The graph has no operation {operation!r}.")
        return Output(found, int(index))

    def tensor(self, array, tf_type):
        """The address of a new TF_Tensor."""
        array = np.asarray(array, order="C")
        if tf_type != STRING and TF_TYPES.get(array.dtype) != tf_type:
            raise TypeError(
                f"Received: array of {array.dtype}, expected "
                f"{np.dtype(NUMPY_TYPES[tf_type])}."
            )
        item_size = (
            ctypes.sizeof(String) if tf_type == STRING else array.itemsize
        )
        tensor = self.library.TF_AllocateTensor(
            tf_type,
            (ctypes.c_int64 * array.ndim)(*array.shape),
            array.ndim,
            ctypes.c_size_t(array.size * item_size),
        )
        data = self.library.TF_TensorData(ctypes.c_void_p(tensor))
        if tf_type == STRING:
            self.write_strings(data, array.ravel())
        else:
            ctypes.memmove(data, array.ctypes.data, array.nbytes)
        return tensor

    def write_strings(self, address, values):
        strings = (String * len(values)).from_address(address)
        for string, value in zip(strings, values, strict=True):
            value = value if isinstance(value, bytes) else str(value).encode()
            size = ctypes.c_size_t(len(value))
            self.library.TF_StringInit(ctypes.byref(string))
            self.library.TF_StringCopy(ctypes.byref(string), value, size)

    def array(self, tensor):
        rank = self.library.TF_NumDims(tensor)
        shape = [self.library.TF_Dim(tensor, axis) for axis in range(rank)]
        address = self.library.TF_TensorData(tensor)
        tf_type = self.library.TF_TensorType(tensor)
        if tf_type == STRING:
            return np.array(
                self.read_strings(address, math.prod(shape))
            ).reshape(shape)
        data = ctypes.string_at(address, self.library.TF_TensorByteSize(tensor))
        return np.frombuffer(data, NUMPY_TYPES[tf_type]).reshape(shape)

    def read_strings(self, address, count):
        return [
            ctypes.string_at(
                self.library.TF_StringGetDataPointer(ctypes.byref(string)),
                self.library.TF_StringGetSize(ctypes.byref(string)),
            )
            for string in (String * count).from_address(address)
        ]


def main(folder, signature, *files):
    model = SavedModel(folder, signature)
    for inputs, outputs in zip(files[::2], files[1::2], strict=True):
        with np.load(inputs) as feeds:
            np.savez(outputs, **model.run(dict(feeds)))
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    report = {"signature": model.signature, "modules": modules}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    for line in sys.stdin:  # a job: folder, signature, files
        main(*json.loads(line))
