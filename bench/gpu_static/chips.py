"""Descriptions of GPUs for XLA."""

from typing import NamedTuple


class Chip(NamedTuple):
    """A GPU; sizes are in bytes, the bandwidth in bytes per second, the clock in GHz."""

    capability: int
    cores: int
    fpus: int
    shared_memory: int
    cache: int
    memory: int
    bandwidth: int
    clock: float

    @property
    def target_config(self) -> str:
        """Returns a `GpuTargetConfigProto` as text; the literal limits hold for all chips."""
        features = "ACCELERATED_FEATURES" if self.capability >= 9 else "NONE"
        return f"""
            gpu_device_info {{
              cuda_compute_capability {{ major: {self.capability} feature_extension: {features} }}
              core_count: {self.cores}
              fpus_per_core: {self.fpus}
              shared_memory_per_core: {self.shared_memory}
              shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.shared_memory - 1024}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              threads_per_warp: 32
              threads_per_block_limit: 1024
              threads_per_core_limit: 2048
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              l2_cache_size: {self.cache}
              device_memory_size: {self.memory}
              memory_bandwidth: {self.bandwidth}
              clock_rate_ghz: {self.clock}
            }}
            platform_name: "CUDA"
        """


CHIPS = {
    "A100": Chip(8, 108, 64, 167936, 41943040, 85_100_068_864, 2_039_040_000_000, 1.41),
    "H200": Chip(9, 132, 128, 233472, 52428800, 151_397_597_184, 4_800_000_000_000, 1.98),
    "B200": Chip(10, 148, 128, 233472, 132644864, 191_514_411_008, 7_672_320_000_000, 1.965),
}
