nibble_test(sampler_test SOURCES sampler_test.cc LINKS nibble_runtime)
nibble_test(runtime_test SOURCES runtime_test.cc LINKS nibble_runtime)
nibble_test(facade_test SOURCES facade_test.cc LINKS nibble_facade)
