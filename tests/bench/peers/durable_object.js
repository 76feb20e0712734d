// One gallery per Durable Object, as the source design has it: the entry worker finds the user's object, which answers.
// GET /sql/… runs the gallery's SQL at every read, GET /memory/… answers a page that the object keeps; PUT fills it.
import { DurableObject } from "cloudflare:workers";

const PAGE = "SELECT document FROM images WHERE trashed_at IS NULL ORDER BY created_at DESC, id DESC LIMIT 50";
const JSON_HEADERS = { headers: { "content-type": "application/json" } };

export class Gallery extends DurableObject {
  constructor(state, env) {
    super(state, env);
    this.sql = state.storage.sql;
    this.page = null;
    this.sql.exec(`CREATE TABLE IF NOT EXISTS images (
      id TEXT PRIMARY KEY, created_at TEXT NOT NULL, trashed_at TEXT, document TEXT NOT NULL) WITHOUT ROWID;
      CREATE INDEX IF NOT EXISTS newest ON images (created_at DESC, id DESC) WHERE trashed_at IS NULL`);
  }

  fill(images) {
    const insert = "INSERT OR REPLACE INTO images VALUES (?, ?, NULL, ?)";
    for (const image of images) this.sql.exec(insert, image.id, image.created_at, JSON.stringify(image));
    this.page = null;
  }

  read() {
    const documents = [];
    for (const [document] of this.sql.exec(PAGE).raw()) documents.push(document); // stored as the JSON that is sent
    return `{"success":true,"images":[${documents.join(",")}],"next_page_token":null}`;
  }

  async fetch(request) {
    if (request.url.includes("/sql/")) return new Response(this.read(), JSON_HEADERS);
    this.page ??= new TextEncoder().encode(this.read());
    return new Response(this.page, JSON_HEADERS);
  }
}

export default {
  async fetch(request, env) {
    const gallery = env.GALLERY.get(env.GALLERY.idFromName("ana"));
    if (request.method !== "PUT") return gallery.fetch(request);
    await gallery.fill((await request.json()).images);
    return new Response(null, { status: 204 });
  },
};
