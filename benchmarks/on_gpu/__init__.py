"""What benchmarks.gpu measures, a file a section; `machine` is what they measure on, `report` what they say it with."""
