"""Tell an execution as W3C PROV-XML (`provo.xml`), read it back, check its times, convert it."""
