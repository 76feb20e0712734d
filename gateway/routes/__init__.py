"""Every URL, on one screen."""

from __future__ import annotations

from aiohttp import web

from gateway.routes import (
    account,
    admin,
    callbacks,
    credits,
    events,
    files,
    generation_events,
    generations,
    health,
    images,
    internal,
    model_settings,
    models,
    prompts,
    provider_keys,
    references,
    stats,
    templates,
    webhooks,
)
from gateway.routes.context import admitted

__all__ = ["add_routes"]


def add_routes(app: web.Application) -> None:
    """Add all routes to `app`."""
    app.router.add_routes(
        [
            # The caller's own gallery: a user's token or API key.
            web.get("/api/images", images.list_images, allow_head=False),
            web.get("/api/v1/images", images.list_images, allow_head=False),
            web.post("/api/images", generations.generate_image),
            web.post("/api/images/upload", admitted(images.upload)),
            web.post("/api/images/sync", images.sync),
            web.delete("/api/images/trash", images.empty_trash),
            web.get("/api/images/{id}", images.get_image, allow_head=False),
            web.patch("/api/images/{id}", images.change_image),
            web.delete("/api/images/{id}", images.delete_image),
            web.post("/api/images/{id}/restore", images.restore_image),
            web.get("/api/references", references.list_references, allow_head=False),
            web.post("/api/references", admitted(references.upload)),
            web.get("/api/references/{id}", references.get_reference, allow_head=False),
            web.delete("/api/references/{id}", references.delete_reference),
            web.post("/api/generations", generations.create_generation),
            web.post("/api/generate", generations.create_generation),
            web.post("/api/v1/images/generate", generations.create_generation),
            web.post("/api/generations/estimate", generations.estimate_generation),
            web.get("/api/generations/{id}", generations.get_generation, allow_head=False),
            web.delete("/api/generations/{id}", generations.cancel_generation),
            web.get("/api/generations/{id}/events", generation_events.follow_generation, allow_head=False),
            web.get("/api/batches/{id}", generations.get_batch, allow_head=False),
            web.get("/api/models", models.list_models, allow_head=False),
            web.get("/api/model-settings", model_settings.list_settings, allow_head=False),
            web.put("/api/model-settings/{model:.+}", model_settings.put_settings),
            web.delete("/api/model-settings/{model:.+}", model_settings.delete_settings),
            web.get("/api/provider-keys", provider_keys.list_keys, allow_head=False),
            web.put("/api/provider-keys/{provider}", provider_keys.put_key),
            web.delete("/api/provider-keys/{provider}", provider_keys.delete_key),
            web.get("/api/templates", templates.list_templates, allow_head=False),
            web.post("/api/templates", templates.create_template),
            web.get("/api/templates/{id}", templates.get_template, allow_head=False),
            web.patch("/api/templates/{id}", templates.change_template),
            web.delete("/api/templates/{id}", templates.delete_template),
            web.patch("/api/account", credits.change_account),
            web.get("/api/account/ledger", credits.ledger, allow_head=False),
            web.get("/api/prompts", prompts.list_prompts, allow_head=False),
            web.get("/api/v1/prompts", prompts.list_prompts, allow_head=False),
            web.get("/api/prompts/{id}", prompts.get_prompt, allow_head=False),
            web.patch("/api/prompts/{id}", prompts.change_prompt),
            web.delete("/api/prompts/{id}", prompts.hide_prompt),
            web.get("/api/generations", prompts.list_generations, allow_head=False),
            web.get("/api/stats", stats.stats, allow_head=False),
            web.get("/api/account", account.get_account, allow_head=False),
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
            web.post("/internal/users/{user}/images", admitted(internal.save_image)),
            web.post("/internal/users/{user}/sync", internal.sync),
            web.get("/internal/users/{user}/prompts", internal.list_prompts, allow_head=False),
            web.get("/internal/users/{user}/stats", internal.stats, allow_head=False),
            web.get("/internal/users/{user}/account", internal.account, allow_head=False),
            # For providers, at addresses that only they were told.
            web.post("/callbacks/{provider}/{token}", callbacks.called_back),
            # Bytes, for whoever has the URL.
            web.get("/files/{key:.+}", files.get_file),
            # For operators: an admin's token.
            web.get("/admin/hosts", admin.hosts, allow_head=False),
            web.get("/admin/replicas", admin.replicas, allow_head=False),
            web.get("/admin/overview", admin.overview, allow_head=False),
            web.get("/admin/users", admin.users, allow_head=False),
            web.delete("/admin/users/{user}", admin.erase),
            web.post("/admin/users/{user}/credits", credits.grant),
            web.put("/admin/users/{user}/plan", credits.set_plan),
            web.get("/admin/users/{user}/ledger", credits.user_ledger, allow_head=False),
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
