// The dialog with the system prompt, the sampling settings, and whether this browser keeps the chat.

const NAMES = ["system", "temperature", "top_p", "max_tokens", "seed"];

export class SettingsDialog {
  /** `change` hears {settings, isKept} when they are set. */
  constructor(dialog, change) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const settings = Object.fromEntries(NAMES.map((name) => [name, this.field(name).value]));
      dialog.close();
      change({ settings, isKept: this.field("keep").checked });
    });
    dialog.querySelector("#settings-cancel").addEventListener("click", () => dialog.close());
    dialog.querySelector("#settings-reset").addEventListener("click", () => {
      for (const name of NAMES) this.field(name).value = "";
    });
  }

  field(name) {
    return this.form.elements.namedItem(name);
  }

  open({ settings, isKept }) {
    for (const name of NAMES) this.field(name).value = settings[name] ?? "";
    this.field("keep").checked = isKept;
    this.dialog.showModal();
  }
}
