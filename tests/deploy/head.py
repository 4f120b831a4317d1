"""A Ray head with a job server, on loopback alone, in a process of its own: head.py CPUS PORT FOLDER.

Prints its addresses, ends with its input, and Ray's processes with it: no other Ray on the machine is touched. Its
address is left in its own folder, as `ray start` leaves it: the job server would send jobs to any Ray that it finds.
Its agent, which takes the jobs, listens wherever there is room: at the usual port another Ray's agent may sit, a local
search's for one, and then none is taken. `ray start` has --dashboard-agent-listen-port for it, `ray.init` has nothing.
"""

import sys
from functools import partial

import ray
from ray._private import parameter

if __name__ == "__main__":
    cpus, port, folder = sys.argv[1:]
    parameter.RayParams = partial(parameter.RayParams, dashboard_agent_listen_port=0)
    context = ray.init(
        address="local",
        num_cpus=int(cpus),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=int(port),
        log_to_driver=False,
        _temp_dir=folder,
    )
    ray._private.utils.write_ray_address(context.address_info["gcs_address"], folder)
    print(context.dashboard_url, context.address_info["gcs_address"], flush=True)
    sys.stdin.read()
    ray.shutdown()
