nibble_test(pipeline_test SOURCES pipeline_test.cc LINKS nibble_pipeline)
