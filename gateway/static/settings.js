// The dialog with the system prompt, the sampling settings, the form of answers, and whether this browser keeps the chat.

import { schemaFault } from "./conversation.js";

const NAMES = ["system", "temperature", "top_p", "max_tokens", "seed", "form", "schema"];

export class SettingsDialog {
  /** `change` hears {settings, isKept} when they are set. */
  constructor(dialog, change) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const schema = this.field("schema");
      schema.setCustomValidity(this.field("form").value === "schema" ? schemaFault(schema.value) : "");
      if (!schema.reportValidity()) return;
      const settings = Object.fromEntries(NAMES.map((name) => [name, this.field(name).value]));
      dialog.close();
      change({ settings, isKept: this.field("keep").checked });
    });
    dialog.querySelector("#settings-cancel").addEventListener("click", () => dialog.close());
    dialog.querySelector("#settings-reset").addEventListener("click", () => {
      for (const name of NAMES) this.field(name).value = "";
      this.showSchema();
    });
    this.field("form").addEventListener("change", () => this.showSchema());
    // What was wrong with it may be right now.
    this.field("schema").addEventListener("input", () => this.field("schema").setCustomValidity(""));
  }

  /** Shows the box of the schema where there is one to be given. */
  showSchema() {
    const isAsked = this.field("form").value === "schema";
    this.dialog.querySelector("#schema-box").hidden = !isAsked;
    if (!isAsked) this.field("schema").setCustomValidity("");
  }

  field(name) {
    return this.form.elements.namedItem(name);
  }

  open({ settings, isKept }) {
    for (const name of NAMES) this.field(name).value = settings[name] ?? "";
    this.field("keep").checked = isKept;
    this.showSchema();
    this.dialog.showModal();
  }
}
