"""Cuts the slides of CAMELYON16 and 17 into patches with masks: `sh run_prepro.sh`, see README.md."""
