/* Small helps that the pages do without: times in the reader's zone, copying, a status that stays fresh. */
(function () {
  "use strict";
  var exact = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });

  function localise(root) {
    root.querySelectorAll("time[data-moment]").forEach(function (element) {
      var at = new Date(element.getAttribute("datetime"));
      if (isNaN(at)) { return; }
      element.textContent = exact.format(at);
      element.removeAttribute("data-moment");
    });
    root.querySelectorAll("[data-copy]").forEach(function (button) {
      if (navigator.clipboard) { button.hidden = false; }
    });
  }

  function fresh(element) {
    var shown = "";
    window.setInterval(function () {
      if (document.hidden || element.contains(document.activeElement)) { return; }
      fetch(element.dataset.live, { credentials: "same-origin", redirect: "error" }).then(function (answer) {
        if (answer.status === 401) { window.location.reload(); }
        return answer.ok ? answer.text() : shown;
      }).then(function (text) {
        if (!text || text === shown) { return; }
        shown = text;
        // Parsed, never run: the page's own server made it, and the policy forbids inline code.
        var parsed = new DOMParser().parseFromString(text, "text/html");
        element.replaceChildren.apply(element, Array.from(parsed.body.childNodes));
        localise(element);
      }, function () { /* the next turn asks again */ });
    }, 3000);
  }

  document.addEventListener("click", function (event) {
    var button = event.target.closest("[data-copy]");
    if (button) {
      navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim()).then(function () {
        button.querySelector("[data-said]").textContent = "Copied";
      }, function () {
        button.querySelector("[data-said]").textContent = "Could not copy: select the text instead";
      });
    }
    document.querySelectorAll("details[data-menu][open]").forEach(function (menu) {
      if (!menu.contains(event.target)) { menu.open = false; }
    });
  });
  document.addEventListener("keydown", function (event) {
    if (event.key !== "Escape") { return; }
    document.querySelectorAll("details[data-menu][open]").forEach(function (menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    });
  });
  localise(document);
  document.querySelectorAll("[data-live]").forEach(fresh);
  document.querySelectorAll("nav [aria-current=page]").forEach(function (link) {
    var bar = link.parentElement;
    if (bar.scrollWidth > bar.clientWidth) { bar.scrollLeft = link.offsetLeft - bar.offsetLeft - 16; }
  });
}());
