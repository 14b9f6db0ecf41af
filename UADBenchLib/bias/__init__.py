"""Whether results differ between scanners, ages, sexes and lesions: tests, effect sizes, intervals, and a remedy."""
