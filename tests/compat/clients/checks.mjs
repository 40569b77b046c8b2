// Runs the checks of one Node client and says how each went, one JSON object a line.
import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";

const [, , url, model] = process.argv;

export { url, model };
export const question = [{ role: "user", content: "What is a merge step?" }];

/** Runs checks; one that throws has failed. `client` is the package's name in the registry. */
export async function run(client, checks) {
  const { version } = JSON.parse(readFileSync(new URL(`../node_modules/${client}/package.json`, import.meta.url), "utf8"));
  for (const [feature, check] of Object.entries(checks)) {
    let failure = "";
    try {
      await check();
    } catch (error) {
      console.error(error);
      failure = `${error.name}: ${error.message}`.split("\n")[0].slice(0, 300);
    }
    console.log(JSON.stringify({ client: `${client} (Node)`, version, feature, failure }));
  }
}

/** Fails the check, saying what should hold. */
export function require(condition, what) {
  if (!condition) throw new Error(what);
}

/** Fails the check if two values are not the same, saying both. */
export function same(left, right, what) {
  require(isDeepStrictEqual(left, right), `${what}: ${JSON.stringify(left)} is not ${JSON.stringify(right)}`);
}
