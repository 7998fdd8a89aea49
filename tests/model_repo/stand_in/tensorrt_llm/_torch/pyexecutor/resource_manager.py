"""The base class of resource managers."""

from abc import ABC, abstractmethod


class BaseResourceManager(ABC):
    @abstractmethod
    def get_max_resource_count(self):
        raise NotImplementedError

    @abstractmethod
    def get_needed_resource_to_completion(self, request):
        raise NotImplementedError

    def add_dummy_requests(self, request_ids):
        return None

    def prepare_resources(self, scheduled_batch):
        return None

    def update_resources(self, scheduled_batch):
        return None

    def free_resources(self, request):
        return None

    def shutdown(self):
        return None
