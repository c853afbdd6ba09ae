/* Asks the browser's authenticator what the form says (data-options), and sends its answer with the form. */
(function () {
  "use strict";

  function bytes(text) {
    var raw = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
    return Uint8Array.from(raw, function (character) { return character.charCodeAt(0); });
  }

  function text(buffer) {
    var raw = "";
    new Uint8Array(buffer).forEach(function (byte) { raw += String.fromCharCode(byte); });
    return btoa(raw).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  }

  function opened(options) {
    options.challenge = bytes(options.challenge);
    if (options.user) { options.user.id = bytes(options.user.id); }
    ["allowCredentials", "excludeCredentials"].forEach(function (name) {
      (options[name] || []).forEach(function (each) { each.id = bytes(each.id); });
    });
    return options;
  }

  function answer(credential) {
    var said = credential.response, response = { clientDataJSON: text(said.clientDataJSON) };
    ["attestationObject", "authenticatorData", "signature", "userHandle"].forEach(function (name) {
      if (said[name]) { response[name] = text(said[name]); }
    });
    return { id: credential.id, rawId: text(credential.rawId), type: credential.type, response: response, clientExtensionResults: {} };
  }

  document.querySelectorAll("form[data-passkey]").forEach(function (form) {
    var failed = form.querySelector("[data-failed]"), button = form.querySelector("button[type=submit]");

    function say(sentence) {
      failed.textContent = sentence;
      failed.hidden = false;
      button.disabled = false;
    }

    form.addEventListener("submit", function (event) {
      event.preventDefault();
      failed.hidden = true;
      if (!window.PublicKeyCredential || !navigator.credentials) {
        say("This browser has no passkeys here: open the page under the name that the settings say, or use the terminal.");
        return;
      }
      button.disabled = true;
      var options = opened(JSON.parse(form.dataset.options));
      navigator.credentials[form.dataset.passkey]({ publicKey: options }).then(function (credential) {
        form.elements.response.value = JSON.stringify(answer(credential));
        form.submit();
      }).catch(function (error) {
        say("Nothing was signed. " + (error.name === "NotAllowedError" ? "The passkey was not used, or too late."
          : error.name === "InvalidStateError" ? "This authenticator has a passkey for this page already."
          : error.name === "SecurityError" ? "Passkeys do not work under this address: use the name that the settings say."
          : "The browser says: " + error.name + "."));
      });
    });
  });
}());
