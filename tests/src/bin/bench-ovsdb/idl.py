# The same with Open vSwitch's IDL for Python: idl.py SCHEMA REMOTE COLUMNS [FILE-OF-LOGICAL-PORTS]
import sys

import ovs.db.idl
import ovs.json
import ovs.poller

schema, remote, columns = sys.argv[1:4]
helper = ovs.db.idl.SchemaHelper(location=schema)
helper.register_columns("Port_Binding", columns.split(","))
idl = ovs.db.idl.Idl(remote, helper, probe_interval=0)
if len(sys.argv) > 4:
    with open(sys.argv[4]) as ports:
        condition = [["logical_port", "==", port.strip()] for port in ports]
    idl.cond_change("Port_Binding", condition)
while not idl.has_ever_connected():
    idl.run()
    poller = ovs.poller.Poller()
    idl.wait(poller)
    if not idl.has_ever_connected():
        poller.block()
print(len(idl.tables["Port_Binding"].rows), flush=True)
ovs.poller.Poller().block()
