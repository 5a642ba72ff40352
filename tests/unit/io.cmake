nibble_test(io_test
  SOURCES io_atomic_output_test.cc io_gguf_checkpoint_test.cc io_gguf_test.cc io_hf_folder_test.cc io_json_test.cc
          io_safetensors_test.cc
  LINKS nibble_io)
target_include_directories(io_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
