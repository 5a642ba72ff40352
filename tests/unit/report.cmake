nibble_test(report_test SOURCES report_test.cc LINKS nibble_report)
