"""libjrs for Python: ctypes and NumPy, without copies. The manual is integrators.md, the interface jrs.h.

    import jrs
    model, session = jrs.Model("model.safetensors"), jrs.Session()
    result = session.register(model, jrs.Volume(fixed, spacing, origin), jrs.Volume(moving, spacing, origin))
    result.dvf()        # [3][k][j][i], a view of the library's memory

JRS_LIBRARY names the shared library where the loader does not find libjrs.so.0.
"""

import ctypes as c
import json
import os

import numpy as np

_lib = c.CDLL(os.environ.get("JRS_LIBRARY", "libjrs.so.0"))
_lib.jrs_last_error.restype = c.c_char_p
_lib.jrs_version_string.restype = c.c_char_p

ABI_VERSION = 0
INT16, FLOAT32, UINT8 = 1, 2, 3
PRECISION_F32, PRECISION_BF16, PRECISION_TF32 = 0, 1, 2
PREALIGN_GIVEN, PREALIGN_RIGID, PREALIGN_AFFINE = 0, 1, 2
DVF_MHA, DVF_NRRD, DVF_NIFTI, DVF_NIFTI_ANTS, WARPED_NIFTI, LABELS_NIFTI = range(1, 7)
VERDICTS = ("OK", "REVIEW", "REJECT")

PROGRESS = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_char_p, c.c_uint64, c.c_uint64)
LOG = c.CFUNCTYPE(None, c.c_void_p, c.c_int32, c.c_char_p)


class Error(Exception):
    """A failed call: `code` is one of JRS_E_*."""

    def __init__(self, code):
        super().__init__(_lib.jrs_last_error().decode())
        self.code = code


def _check(code):
    if code:
        raise Error(code)


class _Volume(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("data", c.c_void_p),
        ("data_bytes", c.c_uint64),
        ("dtype", c.c_uint32),
        ("reserved", c.c_uint32),
        ("dims", c.c_uint64 * 3),
        ("strides", c.c_int64 * 3),
        ("spacing", c.c_double * 3),
        ("origin", c.c_double * 3),
        ("direction", c.c_double * 9),
        ("slope", c.c_double),
        ("intercept", c.c_double),
    ]


class _SessionOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("threads", c.c_uint32),
        ("device", c.c_uint32),
        ("precision", c.c_uint32),
        ("deterministic", c.c_uint32),
        ("max_host_bytes", c.c_uint64),
        ("max_device_bytes", c.c_uint64),
        ("progress", PROGRESS),
        ("progress_user", c.c_void_p),
        ("log", LOG),
        ("log_user", c.c_void_p),
    ]


class _RegisterInput(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("fixed", c.POINTER(_Volume)),
        ("moving", c.POINTER(_Volume)),
        ("labels", c.POINTER(_Volume)),
        ("reference_labels", c.POINTER(_Volume)),
        ("contours", c.c_void_p),
        ("prealign", c.POINTER(c.c_double)),
        ("limits", c.c_void_p),
        ("prealign_mode", c.c_uint32),
        ("both_directions", c.c_uint32),
        ("refine_steps", c.c_uint32),
        ("reserved", c.c_uint32),
        ("refine_spacing_mm", c.c_double),
        ("max_tile_bytes", c.c_uint64),
    ]


def _initialised(kind, init):
    struct = kind()
    _check(init(c.byref(struct), c.c_size_t(c.sizeof(struct))))
    return struct


class Volume:
    """An array indexed [k][j][i] with its place in LPS mm. Borrowed, whatever its strides: nothing is copied."""

    def __init__(self, array, spacing, origin, direction=np.eye(3), slope=1.0, intercept=0.0):
        dtypes = {np.dtype(np.int16): INT16, np.dtype(np.float32): FLOAT32, np.dtype(np.uint8): UINT8}
        self.array = array  # keeps the memory alive
        self.struct = _initialised(_Volume, _lib.jrs_volume_init)
        self.struct.data = array.ctypes.data
        self.struct.dtype = dtypes[array.dtype]
        self.struct.dims[:] = array.shape[::-1]
        self.struct.strides[:] = array.strides[::-1]
        last = sum((n - 1) * s for n, s in zip(array.shape, array.strides))
        self.struct.data_bytes = last + array.itemsize
        self.struct.spacing[:] = spacing
        self.struct.origin[:] = origin
        self.struct.direction[:] = np.asarray(direction, float).ravel()
        self.struct.slope, self.struct.intercept = slope, intercept


class Model:
    """A trained network; `public_key` (32 bytes) asks for its vendor's signature."""

    def __init__(self, path, public_key=None):
        self.handle = c.c_void_p()
        _check(_lib.jrs_model_load(os.fsencode(path), public_key, c.byref(self.handle)))

    def card(self):
        return json.loads(_text(_lib.jrs_model_card_json, self.handle))

    def __del__(self):
        _lib.jrs_model_free(self.handle)


class Session:
    """`progress(stage, done, total)` returns True to cancel; `log(level, message)`."""

    def __init__(self, threads=0, max_host_bytes=0, progress=None, log=None, precision=PRECISION_F32):
        self.handle = c.c_void_p()
        options = _initialised(_SessionOptions, _lib.jrs_session_options_init)
        options.threads, options.max_host_bytes, options.precision = threads, max_host_bytes, precision
        # The functions must live as long as the session.
        self._progress = PROGRESS(lambda _, stage, done, total: bool(progress(stage.decode(), done, total)))
        self._log = LOG(lambda _, level, message: log(level, message.decode()))
        if progress:
            options.progress = self._progress
        if log:
            options.log = self._log
        _check(_lib.jrs_session_create(c.byref(options), c.byref(self.handle)))

    def register(self, model, fixed, moving, labels=None, reference=None, prealign=PREALIGN_GIVEN, refine_steps=0):
        """`prealign`: PREALIGN_* or a 4x4 array from fixed to moving points."""
        given = _initialised(_RegisterInput, _lib.jrs_register_input_init)
        for name, volume in (("fixed", fixed), ("moving", moving), ("labels", labels), ("reference_labels", reference)):
            if volume is not None:
                setattr(given, name, c.pointer(volume.struct))
        if isinstance(prealign, int):
            given.prealign_mode = prealign
        else:
            matrix = (c.c_double * 16)(*np.asarray(prealign, float).ravel())
            given.prealign = matrix
        given.refine_steps = refine_steps
        result = c.c_void_p()
        # ctypes gives the interpreter's lock free during the call.
        _check(_lib.jrs_register(self.handle, model and model.handle, c.byref(given), None, c.byref(result)))
        return Result(result)

    def __del__(self):
        _lib.jrs_session_free(self.handle)


class Result:
    """Arrays are views into the library's memory; they keep the result alive."""

    def __init__(self, handle):
        self.handle = handle
        dims = (c.c_uint64 * 3)()
        _check(_lib.jrs_result_dims(handle, dims))
        self.shape = tuple(dims[::-1])

    def _view(self, pointer, dtype):
        count = int(np.prod(self.shape))
        memory = (np.ctypeslib.as_ctypes_type(dtype) * count).from_address(pointer.value)
        memory._result = self
        array = np.frombuffer(memory, dtype).reshape(self.shape)
        array.flags.writeable = False
        return array

    def dvf(self):
        """The x, y and z component, each [k][j][i], LPS mm: the fixed point p shows the moving point p + u(p)."""
        u = [c.c_void_p() for _ in range(3)]
        _check(_lib.jrs_result_dvf_view(self.handle, *map(c.byref, u)))
        return [self._view(component, np.float32) for component in u]

    def warped(self):
        voxels = c.c_void_p()
        _check(_lib.jrs_result_warped_view(self.handle, c.byref(voxels)))
        return self._view(voxels, np.float32)

    def labels(self):
        voxels = c.c_void_p()
        _check(_lib.jrs_result_labels_view(self.handle, c.byref(voxels)))
        return self._view(voxels, np.uint8)

    def carry_points(self, points):
        """Moving points [n][3] to fixed points; also residuals (mm) and flags."""
        points = np.ascontiguousarray(points, float)
        carried, residuals, flags = np.empty_like(points), np.empty(len(points)), np.empty(len(points), np.uint32)
        pointers = (c.c_void_p(a.ctypes.data) for a in (carried, residuals, flags))
        _check(_lib.jrs_result_carry_points(self.handle, c.c_void_p(points.ctypes.data), c.c_size_t(len(points)), *pointers))
        return carried, residuals, flags

    def qa_json(self):
        return _text(_lib.jrs_result_qa_json, self.handle)

    def provenance_json(self):
        return _text(_lib.jrs_result_provenance_json, self.handle)

    def write(self, kind, path):
        _check(_lib.jrs_result_write(self.handle, c.c_uint32(kind), os.fsencode(path)))

    def __del__(self):
        _lib.jrs_result_free(self.handle)


def _text(get, handle):
    needed = c.c_size_t()
    _check(get(handle, None, c.c_size_t(0), c.byref(needed)))
    buffer = c.create_string_buffer(needed.value)
    _check(get(handle, buffer, needed, c.byref(needed)))
    return buffer.value.decode()


if _lib.jrs_abi_version() != ABI_VERSION:
    raise ImportError(f"jrs.py is for ABI {ABI_VERSION}, the library has {_lib.jrs_abi_version()}")
