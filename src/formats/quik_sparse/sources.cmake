list(APPEND NIBBLE_FORMAT_SOURCES
  quik_sparse/expanded.cc quik_sparse/format.cc quik_sparse/layout.cc quik_sparse/reference.cc)
