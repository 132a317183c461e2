"""What CFFI generates; native/lib.py gives it types."""

lib: object
ffi: object
