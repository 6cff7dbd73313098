"""Ray in processes of its own: its threads and warnings are none of the tests'.

python cluster_child.py cluster
    a cluster of three nodes: prints its address and folder as JSON, then takes `remove`, `add` and `gpus` from
    stdin, a line each, and answers `ok`
python cluster_child.py devices RECIPE RUN
    where a score step would run, as JSON
"""

import json
import sys
from pathlib import Path
from typing import Any

MEMORY = 80_000_000
"""Bytes of a node's object store: near the least that Ray takes."""


def cluster() -> None:
    import ray
    from ray.cluster_utils import Cluster

    def node() -> Any:
        return {"num_cpus": 1, "object_store_memory": MEMORY}

    made: Any = Cluster(initialize_head=True, head_node_args={**node(), "include_dashboard": False})
    try:
        nodes = [made.add_node(**node()) for _ in range(2)]
        made.wait_for_nodes()
        print(json.dumps({"address": made.address, "folder": made.head_node.get_session_dir_path()}), flush=True)
        for line in sys.stdin:
            if line.strip() == "remove":
                made.remove_node(nodes.pop(), allow_graceful=False)
            else:
                nodes.append(made.add_node(**node(), num_gpus=int(line.strip() == "gpus")))
                made.wait_for_nodes()
            print("ok", flush=True)
    finally:
        ray.shutdown()
        made.shutdown()


def devices(recipe: str, root: str) -> None:
    """Print shards, actors and GPUs of a score step, and the devices that one of its actors is given."""
    import ray

    from builder.cluster import on_ray
    from builder.cluster_pool import Pool
    from builder.console import Reporter
    from builder.pipeline import Steps
    from builder.recipe import load_recipe
    from builder.store import Run

    given = Steps(Run(Path(root)), load_recipe(Path(recipe)), Path(recipe).parent, Reporter(quiet=True))
    with on_ray(given) as steps:
        places = steps._places("score")
        pool = Pool(steps._job("score", places[0], {}, Path("none"), "none"), *places[1:])
        print(json.dumps({"places": places, "devices": ray.get(pool._actor.remote().hello.remote())}))


if __name__ == "__main__":
    {"cluster": cluster, "devices": devices}[sys.argv[1]](*sys.argv[2:])
