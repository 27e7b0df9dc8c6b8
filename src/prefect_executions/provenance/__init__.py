"""W3C PROV (`provo.xml`): write PROV-XML, read it, check its times, and convert it."""
