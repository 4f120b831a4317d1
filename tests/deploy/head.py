"""A Ray head with a job server, on loopback alone, in a process of its own: prints its addresses, ends with its input.

Ray's processes end with the one that started them, whose number is known: no other Ray on the machine is touched.
"""

import sys

import ray

if __name__ == "__main__":
    context = ray.init(
        address="local",
        num_cpus=int(sys.argv[1]),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=int(sys.argv[2]),
        log_to_driver=False,
    )
    print(context.dashboard_url, context.address_info["gcs_address"], flush=True)
    sys.stdin.read()
    ray.shutdown()
