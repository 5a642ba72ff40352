nibble_test(kernels_test SOURCES kernels_elementwise_test.cc kernels_gemm_test.cc kernels_attention_test.cc
            kernels_cache_row_test.cc kernels_hadamard_test.cc
            LINKS nibble_kernels)
