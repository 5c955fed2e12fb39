package dev.pidone.ratings;

import java.util.Map;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.context.properties.ConfigurationProperties;
import org.springframework.boot.context.properties.EnableConfigurationProperties;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;

/** The ratings of Bookinfo; what they are stands in the configuration. */
@SpringBootApplication
@EnableConfigurationProperties(Application.Ratings.class)
@RestController
public class Application {

    /** By reviewer; without a config server there are none, and the application does not start. */
    @ConfigurationProperties("ratings")
    public record Ratings(Map<String, Integer> reviewers) {}

    private final Ratings ratings;

    public Application(Ratings ratings) {
        this.ratings = ratings;
    }

    @GetMapping("/ratings/{product}")
    public Map<String, Object> ratings(@PathVariable int product) {
        return Map.of("id", product, "ratings", ratings.reviewers());
    }

    public static void main(String[] args) {
        SpringApplication.run(Application.class, args);
    }
}
