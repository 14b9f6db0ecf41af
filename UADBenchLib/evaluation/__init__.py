"""Numbers that say how good a map or a mask is, each with the rule it was counted by."""
