"""Runs one datasource of cloud-init as a boot does, and prints as JSON what it came to.

Arguments: the datasource, a folder for what cloud-init keeps, and what the guest's firmware says, in JSON.
"""

import importlib
import json
import logging
import sys

from cloudinit import distros, dmi, helpers, version

name, folder, firmware = sys.argv[1:]
logging.basicConfig(stream=sys.stderr, level=logging.DEBUG)
dmi.read_dmi_data = json.loads(firmware).get

settings = {"max_wait": 30, "timeout": 10, "retries": 5}
config = {"datasource_list": [name], "datasource": {name: settings}}
paths = helpers.Paths({"cloud_dir": f"{folder}/lib", "run_dir": f"{folder}/run"})
distro = distros.fetch("debian")("debian", config, paths)
module = importlib.import_module(f"cloudinit.sources.DataSource{name}")
source = getattr(module, f"DataSource{name}")(config, distro, paths)

found = source.get_data()


def text(data):
    return data.decode() if isinstance(data, bytes) else data


def hostname():
    # Newer versions also say whether it is a default.
    answer = source.get_hostname()
    return getattr(answer, "hostname", answer)


json.dump(
    {
        "version": version.version_string(),
        "found": found,
        "address": source.metadata_address,
        "instance_id": source.get_instance_id(),
        "hostname": hostname(),
        "availability_zone": source.availability_zone,
        "public_keys": source.get_public_ssh_keys(),
        "user_data": (source.get_userdata_raw() or b"").hex(),
        "vendor_data": [text(source.get_vendordata_raw()), text(source.get_vendordata2_raw())],
        "metadata": source.metadata,
        "ec2_metadata": getattr(source, "ec2_metadata", None),
        "network": source.network_config,
    },
    sys.stdout,
    default=repr,
)
