nibble_test(codebooks_test SOURCES codebooks_test.cc LINKS nibble_quantizers)
