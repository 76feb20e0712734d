using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "gallery", worker = .gallery),
    (name = "disk", disk = (path = "FOLDER", writable = true)),
  ],
  sockets = [(name = "http", address = "127.0.0.1:PORT", http = (), service = "gallery")],
);

const gallery :Workerd.Worker = (
  modules = [(name = "durable_object.js", esModule = embed "durable_object.js")],
  compatibilityDate = "2026-01-01",
  durableObjectNamespaces = [(className = "Gallery", uniqueKey = "gallery", enableSql = true)],
  durableObjectStorage = (localDisk = "disk"),
  bindings = [(name = "GALLERY", durableObjectNamespace = "Gallery")],
);
