nibble_test(kernels_test SOURCES kernels_elementwise_test.cc kernels_gemm_test.cc kernels_attention_test.cc
            LINKS nibble_kernels)
