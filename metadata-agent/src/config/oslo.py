"""What oslo.config makes of configurations: command lines as JSON lines on stdin, values as JSON lines on stdout."""
import json
import sys

from oslo_config import cfg

# Options of Neutron's metadata agent with the defaults that Neutron has for them, but for ovsdb_connection's.
OPTIONS = {
    None: {
        'state_path': '/var/lib/neutron',
        'bind_host': '0.0.0.0',
        'metadata_proxy_socket': '$state_path/metadata_proxy',
        'metadata_proxy_shared_secret': '',
        'auth_ca_cert': None,
        'nova_client_cert': '',
        'nova_metadata_protocol': cfg.StrOpt('nova_metadata_protocol', default='http', choices=['http', 'https']),
        'nova_metadata_host': cfg.HostAddressOpt('nova_metadata_host', default='127.0.0.1'),
        'nova_metadata_port': cfg.PortOpt('nova_metadata_port', default=8775),
        'debug': cfg.BoolOpt('debug', default=False),
    },
    'ovn': {
        'ovn_sb_connection': 'tcp:127.0.0.1:6642',
        'ovn_sb_private_key': '',
        'ovn_sb_ca_cert': '',
    },
    'ovs': {'ovsdb_connection': 'unix:/run/openvswitch/db.sock'},
}


def value(conf, group, name):
    try:
        found = getattr(conf if group is None else conf[group], name)
        return {'text': found if found is None else str(found)}
    except Exception as error:
        return {'error': str(error)}


def read(arguments):
    conf = cfg.ConfigOpts()
    for group, options in OPTIONS.items():
        for name, default in options.items():
            # As in Neutron: an option of the command line, too.
            register = conf.register_cli_opt if name == 'state_path' else conf.register_opt
            register(default if isinstance(default, cfg.Opt) else cfg.StrOpt(name, default=default), group=group)
    try:
        conf(arguments, project='x', default_config_files=[], default_config_dirs=[])
    except Exception as error:
        return {'error': str(error)}
    return {'values': [[group or 'DEFAULT', name, value(conf, group, name)]
                       for group, options in OPTIONS.items() for name in options]}


for line in sys.stdin:
    print(json.dumps(read(json.loads(line))))
