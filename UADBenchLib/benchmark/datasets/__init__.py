"""Public data sets as they are downloaded, and the way from there to BIDS: a description each, one importer."""
