"""A stand-in for PyCUDA, made of what caffe2 calls, on the emulated driver."""
