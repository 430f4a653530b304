/* What the driver can answer: X(number, name, words). The numbers and names are those of cuda.h; the words are ours. */
#define STATUSES(X) \
    X(0, CUDA_SUCCESS, "no error") \
    X(1, CUDA_ERROR_INVALID_VALUE, "invalid argument") \
    X(2, CUDA_ERROR_OUT_OF_MEMORY, "out of memory") \
    X(3, CUDA_ERROR_NOT_INITIALIZED, "initialization error") \
    X(34, CUDA_ERROR_STUB_LIBRARY, "stub library") \
    X(46, CUDA_ERROR_DEVICE_UNAVAILABLE, "device busy or unavailable") \
    X(100, CUDA_ERROR_NO_DEVICE, "no device") \
    X(101, CUDA_ERROR_INVALID_DEVICE, "invalid device") \
    X(200, CUDA_ERROR_INVALID_IMAGE, "invalid image") \
    X(201, CUDA_ERROR_INVALID_CONTEXT, "invalid context") \
    X(214, CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error") \
    X(222, CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "PTX of an unsupported toolchain") \
    X(400, CUDA_ERROR_INVALID_HANDLE, "invalid handle") \
    X(500, CUDA_ERROR_NOT_FOUND, "symbol not found") \
    X(600, CUDA_ERROR_NOT_READY, "not ready") \
    X(700, CUDA_ERROR_ILLEGAL_ADDRESS, "illegal memory access") \
    X(709, CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed") \
    X(719, CUDA_ERROR_LAUNCH_FAILED, "launch failure") \
    X(801, CUDA_ERROR_NOT_SUPPORTED, "not supported") \
    X(802, CUDA_ERROR_SYSTEM_NOT_READY, "system not initialized") \
    X(803, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "driver and kernel module differ") \
    X(900, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not permitted while a stream is captured") \
    X(901, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "capture was invalidated") \
    X(907, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "capture of another thread") \
    X(908, CUDA_ERROR_TIMEOUT, "timeout") \
    X(999, CUDA_ERROR_UNKNOWN, "unknown error")
