// Model Info (KOALA) as a table: the first line is the model's name, each other one "fact: value".

import { element, viewWidget } from "./parts.mjs";
import { text } from "./texts.mjs";

viewWidget("PriorArtKoalaInfo", "PRIOR_ART_INFO", 150, (part) => {
  const table = element("table", { "aria-label": text("info.table"), style: "width: 100%" });
  table.append(element("caption", {}, text("info.none")));
  part.root.append(table);
  part.node.setSize([Math.max(300, part.node.size[0]), part.node.size[1]]); // a fact on one line
  return {
    executed(info) {
      const [name, ...facts] = info.split("\n");
      const rows = facts.map((fact) => {
        const [, what, value] = /^(.*?): (.*)$/.exec(fact);
        const heading = element("th", { scope: "row", style: "text-align: left; font-weight: 400" });
        heading.append(what);
        return element("tr", {}, heading, element("td", { style: "text-align: right" }, value));
      });
      const title = element("caption", { style: "font-weight: 600" }, name);
      table.replaceChildren(title, element("tbody", {}, ...rows));
    },
  };
});
