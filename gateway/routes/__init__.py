"""Every URL, on one screen."""

from __future__ import annotations

from aiohttp import web

from gateway.routes import admin, events, files, health, images, internal, references, webhooks

__all__ = ["add_routes"]


def add_routes(app: web.Application) -> None:
    """Add all routes to `app`."""
    app.router.add_routes(
        [
            # The caller's own gallery: a user's token or API key.
            web.get("/api/images", images.list_images, allow_head=False),
            web.get("/api/v1/images", images.list_images, allow_head=False),
            web.post("/api/images/upload", images.upload),
            web.post("/api/images/sync", images.sync),
            web.delete("/api/images/trash", images.empty_trash),
            web.get("/api/images/{id}", images.get_image, allow_head=False),
            web.patch("/api/images/{id}", images.change_image),
            web.delete("/api/images/{id}", images.delete_image),
            web.post("/api/images/{id}/restore", images.restore_image),
            web.get("/api/references", references.list_references, allow_head=False),
            web.post("/api/references", references.upload),
            web.get("/api/references/{id}", references.get_reference, allow_head=False),
            web.delete("/api/references/{id}", references.delete_reference),
            web.get("/api/webhooks", webhooks.list_webhooks, allow_head=False),
            web.post("/api/webhooks", webhooks.create),
            web.get("/api/webhooks/{id}", webhooks.get_webhook, allow_head=False),
            web.patch("/api/webhooks/{id}", webhooks.change),
            web.delete("/api/webhooks/{id}", webhooks.delete),
            web.post("/api/webhooks/{id}/secret", webhooks.rotate),
            web.post("/api/webhooks/{id}/test", webhooks.test),
            web.get("/api/webhooks/{id}/deliveries", webhooks.list_deliveries, allow_head=False),
            web.post("/api/webhooks/{id}/deliveries/{delivery}/replay", webhooks.replay),
            web.get("/api/events", events.events, allow_head=False),
            # Any user's gallery: a service's token.
            web.get("/internal/users/{user}/images", internal.list_images, allow_head=False),
            web.post("/internal/users/{user}/images", internal.save_image),
            web.post("/internal/users/{user}/sync", internal.sync),
            # Bytes, for whoever has the URL.
            web.get("/files/{key:.+}", files.get_file),
            # For operators: an admin's token.
            web.get("/admin/hosts", admin.hosts, allow_head=False),
            web.get("/admin/replicas", admin.replicas, allow_head=False),
            web.get("/admin/users", admin.users, allow_head=False),
            web.delete("/admin/users/{user}", admin.erase),
            web.get("/admin/users/{user}/replica", admin.inspect, allow_head=False),
            web.get("/admin/users/{user}/replica/export", admin.export, allow_head=False),
            web.post("/admin/users/{user}/replica/passivate", admin.passivate),
            web.post("/admin/users/{user}/replica/reseed", admin.reseed),
            web.post("/admin/users/{user}/replica/audit", admin.audit),
            web.post("/admin/epoch/rotate", admin.rotate_epoch),
            # For load balancers and Prometheus.
            web.get("/healthz", health.healthz),
            web.get("/readyz", health.readyz),
            web.get("/metrics", health.metrics),
        ]
    )
