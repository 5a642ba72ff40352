list(APPEND NIBBLE_FORMAT_SOURCES dense/format.cc dense/kernels.cc)
