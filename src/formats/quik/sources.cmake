list(APPEND NIBBLE_FORMAT_SOURCES quik/format.cc quik/layout.cc quik/reference.cc)
