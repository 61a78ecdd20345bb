"""The report: where entropy buys performance, for any run, as one page that opens from disk (python -m rlvr.analysis.report)."""
