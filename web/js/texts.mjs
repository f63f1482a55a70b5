// What the pack's own widgets say, in the editor's language: web/js/texts/<language>.json.
import { app } from "../../../scripts/app.js";

async function read(language) {
  const answer = await fetch(new URL(`./texts/${language}.json`, import.meta.url));
  return answer.ok ? answer.json() : {};
}

const language = app.extensionManager.setting.get("Comfy.Locale");
const [english, own] = await Promise.all([read("en"), read(language)]);

/** A message, its `{words}` filled in from `values`; English where the language has none. */
export function text(key, values = {}) {
  const message = own[key] ?? english[key];
  return message.replace(/\{(\w+)\}/g, (whole, word) => values[word] ?? whole);
}
