"""A sweep from one lab to another: `harness export` and `harness import`.

archive    the file it travels in         exporting  store -> archive
private    what texts must not tell       foreign    an archive, checked
merging    two records of one sweep       importing  archive -> store
"""
