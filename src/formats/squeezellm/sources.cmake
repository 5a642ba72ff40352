list(APPEND NIBBLE_FORMAT_SOURCES squeezellm/cpu.cc squeezellm/format.cc squeezellm/layout.cc squeezellm/reference.cc)
nibble_format_isa(squeezellm/cpu_kernels.isa.cc avx2 avx512vnni)
nibble_format_isa(squeezellm/integer_kernels.isa.cc avx512vbmi)
nibble_format_isa(squeezellm/word_kernels.isa.cc avx2)
