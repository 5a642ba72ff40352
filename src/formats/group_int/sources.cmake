list(APPEND NIBBLE_FORMAT_SOURCES group_int/format.cc group_int/layout.cc group_int/reference.cc)
